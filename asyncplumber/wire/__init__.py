"""The bytes that come in and go out.  Pure: no I/O, no clock."""
