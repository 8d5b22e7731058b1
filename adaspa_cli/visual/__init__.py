"""Pictures of attention: where the weights are, what a mask keeps of them, and where a token looks."""
