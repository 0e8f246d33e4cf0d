"""What is wrong here, and what to do about it.

| module | owns |
|---|---|
| `finding` | one thing that is said, as a value |
| `machine` | the facts, read from files |
| `transports`, `process` | what the facts mean for AF_VSOCK, and for the process |
| `daemon` | what a running daemon says of itself |
| `targets` | what the configuration's targets answer |
| `examination` | which of that is asked, and in which order |
| `report` | how it is shown |
"""
