"""The command line: parse, call one use case, show what it returned."""
