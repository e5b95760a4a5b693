"""What an event log tells of a run: reading it as it grows, and folding it into what a person wants to see.

Plain Python over plain records: no drawing, no torch, and memory that does not grow with the log.
"""

from __future__ import annotations
