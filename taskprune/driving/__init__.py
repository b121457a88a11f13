"""The bundled driving networks, their data, losses, metrics, training and demo: a customer."""
