local count = {}
for line in io.lines(arg[1]) do
  for word in line:gmatch("word%d+") do count[word] = (count[word] or 0) + 1 end
end
local names = {}
for name in pairs(count) do names[#names + 1] = name end
table.sort(names)
for _, name in ipairs(names) do print(name, count[name]) end
local function fib(n) if n < 2 then return n end return fib(n - 1) + fib(n - 2) end
print(fib(22), 7 // 2, 7 / 2, 2 ^ 53, math.maxinteger, 10 // 0.0)
print(string.format("%5.2f|%-8s|%q|%x", math.pi, "left", 'quo"te\n', 255))
local co = coroutine.wrap(function() for i = 1, 3 do coroutine.yield(i) end end)
print(co(), co(), co())
print(pcall(error, { code = 1 }) and "no" or "caught")
print(select(2, pcall(error, "message", 0)))
print(io.open("/nowhere/at/all"))
local t = {}
for i = 1, 200000 do t[i] = i * i end
print(#t, t[#t], collectgarbage("count") > 0)
print(os.getenv("HOME"), os.getenv("SECRET"))
io.stderr:write("to standard error\n")
os.exit(4)
