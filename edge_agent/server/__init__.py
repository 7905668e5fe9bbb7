"""The HTTP front: OpenAI's, Ollama's and llama-server's APIs over one supervisor and one store."""
