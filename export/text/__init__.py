"""What the text files beside a checkpoint mean, in the form that a bundle ships."""
