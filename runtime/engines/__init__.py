"""What runs a bundle: the contract (backend), the table of engines, and a folder for each technology."""
