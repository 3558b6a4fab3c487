"""What a session remembers between calls: the tokens, their K and V, and the file that both are saved in."""
