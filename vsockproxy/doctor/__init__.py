"""The checks of `vsockproxy doctor`: the machine, the sandbox, the configuration, the daemon.

| module | owns |
|---|---|
| `finding` | one result of a check, as a value |
| `machine` | the facts about the machine, read from files |
| `transports`, `sandbox` | the judgement of AF_VSOCK, and of the process |
| `running_daemon` | the state of a running daemon |
| `listeners` | the results of trying the configuration's listeners and certificates |
| `targets` | the results of dialling the configuration's targets |
| `probe` | one dial and its explanation |
| `examination` | the order of the checks |
| `report` | the text and JSON of the findings |
"""
