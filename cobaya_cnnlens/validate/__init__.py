"""What was proven, in numbers: noise, bias, coverage, null tests, forecasts. No pictures."""
