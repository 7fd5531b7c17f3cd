"""What an energy does, as a value: its calls, recorded and checked at every run, and the chains found among them."""
