"""tofmipd: an authenticated SMTP submission proxy that tags the sender's address."""

__version__ = "0.1.0"
