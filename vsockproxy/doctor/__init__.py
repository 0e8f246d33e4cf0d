"""The checks of `vsockproxy doctor`: the machine, the sandbox, the configuration, the daemon."""
