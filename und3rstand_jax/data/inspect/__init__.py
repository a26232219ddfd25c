"""What a data set holds, whether its two views agree, and which common mistake explains it if they do not."""
