"""Studies: which recipes run, which numbers come out, and how a verdict is reached. One file each."""
