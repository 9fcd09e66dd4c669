"""What no client, template or hung process may exceed: times, sizes, and the end of the server itself."""
