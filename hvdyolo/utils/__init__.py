"""Leaves that import nothing from hvdyolo."""
