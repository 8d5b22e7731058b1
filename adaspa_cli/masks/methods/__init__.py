"""The methods that choose blocks, one module for each."""
