"""The model itself. These files travel to the Hub with every checkpoint, byte for byte."""
