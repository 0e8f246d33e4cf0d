"""The daemon: the supervisor of all routes, the process around it, its HTTP servers."""
