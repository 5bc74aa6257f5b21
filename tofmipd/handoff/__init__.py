"""The way out: copies go to the next hop by SMTP or to a sendmail program; reports of failures."""
