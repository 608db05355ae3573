"""Stand-ins for software that needs a GPU; they prove how we call it, nothing about the software itself."""
