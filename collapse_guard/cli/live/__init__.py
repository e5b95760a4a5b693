"""The live view: lines of text made of runs, and the terminal they stand in.

What is drawn depends on a width, a height and a time that are given, so that a screen can be compared in a test; only
`terminal` touches a terminal.
"""

from __future__ import annotations
