"""What the client sees: the SMTP dialogue, without any I/O."""
