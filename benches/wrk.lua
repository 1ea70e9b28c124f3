-- Prints what a bench reads of wrk: lines of a name and a number.
function done(summary, latency, requests)
    local errors = summary.errors
    local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
    print("requests " .. summary.requests)
    print("duration_us " .. summary.duration)
    print("failed " .. failed)
    for _, part in pairs({ 50, 90, 99 }) do
        print("p" .. part .. "_us " .. latency:percentile(part))
    end
end
