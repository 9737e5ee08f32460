"""Tests of est_ocp.relaxation and est-ocp relax."""
