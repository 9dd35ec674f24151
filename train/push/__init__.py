"""`jaxgpt push`: a run to the hub, with a card that tells how it was made."""
