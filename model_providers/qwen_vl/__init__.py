"""The model of both families; ``shape.py`` says what differs between them."""
