"""Rows of any form become conversations, and conversations token ids with the place of the response."""
