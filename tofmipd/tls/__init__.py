"""Encryption by pyOpenSSL: certificates, contexts, encrypted connections."""
