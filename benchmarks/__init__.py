"""What mnas costs: masked against modular and stand-alone implementations, measured. Not part of
the package."""
