"""What happens to a message: the outgoing side of TMDA, as a library.

Everything works on octets and settings alone; nothing here knows of sockets, of SMTP or of
processes.  `userfiles` and `config` read files, all else is pure.
"""
