"""`rerankd bench`: measure throughput and latency of rerank servers with the same requests in alternation."""
