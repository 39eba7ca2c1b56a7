"""`rerankd bench`: measures throughput and latency of rerank servers with the same requests in
alternation."""
