"""What TMDA does to outgoing mail, as a library; docs/library.md has an example.

``userfiles.UserFiles`` reads a user's files into a ``profile.Profile``, ``header.parse`` a message
into fields, ``inject.tag_message`` makes the copies.  ``cookies`` makes and checks addresses.
Nothing here knows of SMTP or of processes.
"""
