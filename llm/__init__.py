"""Rules fitted on causal language models: log-probabilities, policies, stages and the trainer (needs nashpo[llm])."""
