"""What a session remembers between calls: the tokens, their K/V, and the file that both are saved in."""
