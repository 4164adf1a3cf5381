"""Figures beside a named peer: one JSON object a line, exit code 1 where a target is missed."""
