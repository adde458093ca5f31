"""From a trained model to text: sampling, batched generation, streaming."""
