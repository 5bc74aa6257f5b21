"""Who is it: sources that can judge a login, and the chain of them."""
