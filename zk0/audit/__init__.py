"""Tamper-evident records of a session: hash chain, ledger, journals, Merkle receipts, reproduction."""
