"""From records of any format to columns of events: decode, check, price, hash."""
