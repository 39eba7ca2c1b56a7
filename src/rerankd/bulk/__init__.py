"""`rerankd score`: the scores of a file of pairs, in bounded memory, with an end that survives a stop."""
