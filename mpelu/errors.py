"""The two errors whose text is written for the user; the command line prints them in one line."""


class MpeluError(Exception):
    """Something failed that the user can mend: says what was wanted, what came and what to do (exit code 1)."""


class UsageError(MpeluError, ValueError):
    """A name, flag or value that the user gave is not one we know (exit code 2)."""


class DataError(MpeluError):
    """A data set that is missing, damaged or not what its layout promises (exit code 1)."""
