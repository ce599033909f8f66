"""Lottery-ticket studies: a study is a plain Python program over cached stages."""

__version__ = "0.1.0"
