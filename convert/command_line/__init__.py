"""The command line: flags described once, in the fields of a dataclass; how they are read, and what is printed."""
