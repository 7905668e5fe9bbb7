"""From a request to token ids, the same in serving and in training.

Flows in: messages, texts, JSON schemas, a model's template and vocabulary. Flows out: token ids and
GBNF grammars. Not here: decoding (engine/), sampling (llama/).
"""
