"""What every benchmark needs of a language model: text to tokens, training, unlearning, scoring, generation."""
