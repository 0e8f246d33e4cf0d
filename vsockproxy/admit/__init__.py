"""Admission: limits and access rules between a listener's backlog and a relay."""
